-- Drops a dead letter and what it kept. 0: there is none.
return drop_letter(ARGV[1]) and 1 or 0
