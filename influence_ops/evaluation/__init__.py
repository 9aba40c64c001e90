"""How well do scores predict what retraining does? The measures of the field, over score tables of any size."""
