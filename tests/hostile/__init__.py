"""Models that are broken or made to do harm, and what mlc does with them."""
