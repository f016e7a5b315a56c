-- Which events are of the last hour, whose tokens may be alive. An append to the log costs nothing for it.
CREATE INDEX events_by_time ON events USING brin (recorded_at) WITH (autosummarize = on);
