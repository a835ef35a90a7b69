"""What people read: tables, charts and pages made from summaries."""
