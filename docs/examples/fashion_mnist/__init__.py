"""The worked example of docs/distillation.md: a teacher, its student, the student pruned, and that in int8."""
