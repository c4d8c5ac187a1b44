"""The command line: parse, make one options object, call one function, print. A file per verb."""
