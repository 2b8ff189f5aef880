CREATE PROCEDURE change_rows(low bigint, high bigint, n bigint)
BEGIN
  DECLARE i bigint DEFAULT low;
  DECLARE k bigint;
  SET autocommit = 0;
  WHILE i <= high DO
    SET k = (i * 7919) % n + 1;
    IF k % 10 = 0 THEN SET k = k - 1; END IF;
    CASE
      WHEN i % 10 < 6 THEN UPDATE bench SET amount = amount + 1.25, at = at + interval 1000001 microsecond WHERE id = k;
      WHEN i % 10 = 6 THEN UPDATE bench SET note = concat('changed ', md5(i), repeat('y', 50)) WHERE id = k;
      WHEN i % 10 < 9 THEN INSERT INTO bench VALUES (n + i, i % 1000, i / 8, concat(repeat('new ', 20), i), timestamp('2026-02-03 04:05:06.789') + interval i * 1000 microsecond);
      ELSE DELETE FROM bench WHERE id = 10 * (i DIV 10 + 1);
    END CASE;
    IF i % 10 = 9 THEN COMMIT; END IF;
    SET i = i + 1;
  END WHILE;
  COMMIT;
  SET autocommit = 1;
END
