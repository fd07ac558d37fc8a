"""SmartSpec operator: reconciles SmartSpec resources, tunes the policy of running replicas, and scales them."""
