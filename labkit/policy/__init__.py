"""Who answers: model families, prompts, inputs, the model, generation, packed log-probs, attention."""
