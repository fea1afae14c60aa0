"""What our methods are compared with: other searches, other rankings, fewer steps."""
