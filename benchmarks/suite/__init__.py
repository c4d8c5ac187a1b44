"""mlc against what users would pick instead: `make bench`, or `python -m benchmarks.suite --help`.

How it is made fair:

- Every entrant runs in a process of its own: no library's threads, allocator or settings reach
  another's, and peak memory is its own. One process at a time has the turn: it discards one run,
  measures a block, and waits until its threads, which spin for a while after a run, are asleep.
  CPU time that an entrant burns outside its turns is measured, too, and disqualifies the figures.
- Rounds go there and back again (A B C, C B A, ...); ratios are taken within a round, so that a slow
  drift of the machine cancels.
- The same number of threads for all, float32, the same inputs; before anything is timed, every
  entrant's outputs are compared with ONNX Runtime's, its optimizer off, at `mlc verify`'s tolerances.
- Peers get the settings that their makers recommend for latency (`peers.py` says which).
- Code for AVX2 (`--target x86-64-v3`) that is timed where there is AVX-512 meets peers held to AVX2, but for
  ONNX Runtime, which cannot be: a machine without AVX-512 would have both in that form.

With `--trials N`, mlc runs after `mlc tune --trials N` of each model, and untuned beside it; the peer
`tvmc` gets as many trials, which are its own code's, and keeps what it made until another TVM comes.
Results are kept model by model in the output folder: interrupted, the same command goes on.
"""
