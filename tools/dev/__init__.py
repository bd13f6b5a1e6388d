"""The workshop: benches, load, fuzzing, soak and the training of the reference checkpoint. Not shipped."""
