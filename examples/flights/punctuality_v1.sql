-- How punctual each airport is, hour by hour.
--
-- There is a mistake in it: a cancelled flight has no delay, coalesce() makes that a delay of zero,
-- and so a cancelled flight counts as departed, and on time. See punctuality_v2.sql.
CREATE MATERIALIZED VIEW punctuality
WITH (allowed_lateness = '2 days', retention = 'forever') AS
SELECT
  origin,
  window_start,
  window_end,
  count(*) AS departures,
  count(*) FILTER (WHERE coalesce(dep_delay, 0) <= 15) AS on_time,
  avg(coalesce(dep_delay, 0)) AS avg_delay,
  max(dep_delay) AS max_delay
FROM TUMBLE(flights, scheduled, INTERVAL '1 hour')
GROUP BY origin, window_start, window_end
EMIT ON UPDATE;
