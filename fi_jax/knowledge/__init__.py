"""The paper's two modules: correlation (graph and GCN) and logic (rules, loss, consistent decoding)."""
