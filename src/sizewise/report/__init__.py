"""Run record to terminal text, model card and one offline HTML page; never imports torch."""
