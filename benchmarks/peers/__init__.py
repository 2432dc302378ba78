"""The programs that we compare ourselves with; they run in the bench environment, where torch trainers differ."""
