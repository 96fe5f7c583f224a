"""What pods and containers use, in the form the CRI has."""
