"""What operators see: metrics, logs and traces.  It knows no HTTP framework, no engine and no video."""
