"""How two replicas find and exchange what they lack, sans-IO."""
