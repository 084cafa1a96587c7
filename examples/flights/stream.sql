-- Departures from the three airports of New York, in the order in which they became known.
-- The event time is when a flight was to depart, so a delayed flight is an event out of order:
-- the worst comes almost 22 hours after a later one.
CREATE STREAM flights (
  flight    VARCHAR NOT NULL,
  carrier   VARCHAR NOT NULL,
  tail      VARCHAR,              -- unknown for some flights that never left
  origin    VARCHAR NOT NULL,
  dest      VARCHAR NOT NULL,
  scheduled TIMESTAMP NOT NULL,
  departed  TIMESTAMP,            -- NULL: cancelled
  dep_delay INTEGER,              -- minutes; negative is early, NULL is cancelled
  arr_delay INTEGER,
  air_time  INTEGER,
  distance  INTEGER NOT NULL,
  WATERMARK FOR scheduled AS scheduled - INTERVAL '1 hour'
) WITH (topic = 'flights', format = 'json', key = 'origin', partitions = 4);
