-- Drops a dead letter and what it alone kept; the answer as `drop_letter` says.
return drop_letter(ARGV[1])
