"""Tests in tiers: unit (no TVM), compiler (TVM in this process), e2e (whole commands)."""
