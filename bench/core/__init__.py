"""What the drivers share: measuring, the gate, statistics, floors, the ladder, documents, tables and plots."""
