-- The changes of the bench, numbers low to high: six in ten set two columns, one sets the long column, two insert, one deletes.
-- Ten to a transaction. A delete hits a multiple of ten once, an update never, so that every change is one of a row.
CREATE PROCEDURE change(low bigint, high bigint, rows bigint) LANGUAGE plpgsql AS $$
DECLARE k bigint;
BEGIN
  FOR i IN low..high LOOP
    k := (i::bigint * 7919) % rows + 1;
    IF k % 10 = 0 THEN k := k - 1; END IF;
    CASE
      WHEN i % 10 < 6 THEN UPDATE bench SET amount = amount + 1.25, at = at + interval '1.000001 s' WHERE id = k;
      WHEN i % 10 = 6 THEN UPDATE bench SET note = 'changed ' || md5(i::text) || repeat('y', 50) WHERE id = k;
      WHEN i % 10 < 9 THEN INSERT INTO bench VALUES (rows + i, i % 1000, i / 8.0, repeat('new ', 20) || i, timestamp '2026-02-03 04:05:06.789' + i * interval '1 ms');
      ELSE DELETE FROM bench WHERE id = 10 * (i / 10 + 1);
    END CASE;
    IF i % 10 = 9 THEN COMMIT; END IF;
  END LOOP;
  COMMIT;
END $$;
