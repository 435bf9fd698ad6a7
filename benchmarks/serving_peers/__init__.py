"""Other servers around the same models, each as its documentation sets it up; run in environments of their own."""
