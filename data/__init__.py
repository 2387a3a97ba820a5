"""What a preference is: records, file formats, comparisons. Needs neither torch, gradio nor a database."""
