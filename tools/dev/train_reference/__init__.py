"""How the reference checkpoint is made: pictures, questions, training, evaluation."""
