"""How any diffusers pipeline becomes a policy: captured, never rewritten; no code per family."""
