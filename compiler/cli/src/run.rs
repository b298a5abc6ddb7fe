//! `xfc run`, `xfc logits`, `xfc embed`: compile on the way, then the runtime's own commands.
