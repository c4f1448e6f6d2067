"""What any service of this product needs: HTTP, retries, files, locks, signals, threads, liveness."""
