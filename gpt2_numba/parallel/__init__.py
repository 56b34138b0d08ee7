"""Training one model with several processes: how they meet, communicate and watch each other, and how ZeRO partitions the model."""
