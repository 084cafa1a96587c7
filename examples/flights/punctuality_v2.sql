-- How punctual each airport is, hour by hour: corrected.
--
-- A flight that never left is cancelled. It is no departure, it is not on time, and it has no delay
-- that could make the average look better.
CREATE MATERIALIZED VIEW punctuality
WITH (allowed_lateness = '2 days', retention = 'forever') AS
SELECT
  origin,
  window_start,
  window_end,
  count(*) FILTER (WHERE departed IS NOT NULL) AS departures,
  count(*) FILTER (WHERE departed IS NULL) AS cancelled,
  count(*) FILTER (WHERE departed IS NOT NULL AND dep_delay <= 15) AS on_time,
  avg(dep_delay) AS avg_delay,
  max(dep_delay) AS max_delay
FROM TUMBLE(flights, scheduled, INTERVAL '1 hour')
GROUP BY origin, window_start, window_end
EMIT ON UPDATE;
