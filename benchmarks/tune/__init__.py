"""What tuning buys: `make bench-tune`, or `python -m benchmarks.tune --help`.

Parts, each on a model of the zoo (ResNet-18, and a second one for c):

- a: the model tuned with N trials against the untuned one.
- b: against AutoTVM with the same N trials spread evenly over the tasks, as tvmc does; how many of
  ours reach the latency where that ends.
- c: a second model without a layer of the first, tuned with and without transfer from a store that
  holds the records of part a; how many trials come within 5 % of the best final latency.
- d: the command of part a once more: it measures nothing; how long that takes.
- e: `mlc tune` killed at 20 random moments and resumed (the slow test of that name).

Latencies are of whole artifacts, timed in turn in one process. Each step leaves a JSON file in the
output folder and is skipped when that is there: interrupted, the same command goes on.
"""
