"""What all training shares: layout, what stays zero, distillation from a teacher, checkpoints, devices."""
