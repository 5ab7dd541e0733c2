"""What a store and a bus on a Redis or Valkey server have in common: the address, connections, and what errors mean."""
