"""How the demo model is trained, one module per stage: pool → vision → features → language. `demo_model.train`
runs them.
"""
