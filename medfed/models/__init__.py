"""What is trained: networks, losses, optimisers, learning-rate schedules and the tasks that join them."""
