"""How many pixels the model gets of a picture or clip: the policy of a bundle, and what a request may change of it."""
