"""Operations that change values or rows; registry.py lists them by name."""
