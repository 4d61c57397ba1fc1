"""Which engine `auto` takes: candidates, their trial beside each other, and the choice that is kept."""
