"""What happens when: train, retrain, promote, schedule; and the command line."""
