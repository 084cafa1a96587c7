#!/usr/bin/env bash
# Every tool of Kafka is a Java class. This script runs the class that its name stands for or, under its own name, the class
# in its first argument.
set -euo pipefail

log=/opt/kafka/config/tools-log4j2.yaml
heap=${KAFKA_HEAP_OPTS:--Xmx256m -XX:TieredStopAtLevel=1}
tools=org.apache.kafka.tools
archive=/opt/kafka/tools.jsa
case "$(basename "$0")" in
  kafka-run-class.sh) class=$1; shift ;;
  kafka-server-start.sh)
    class=kafka.Kafka
    archive=/opt/kafka/broker.jsa
    log=/opt/kafka/config/log4j2.yaml
    heap=${KAFKA_HEAP_OPTS:--Xms256m -Xmx1g} ;;
  kafka-storage.sh) class=kafka.tools.StorageTool ;;
  kafka-dump-log.sh) class=kafka.tools.DumpLogSegments ;;
  kafka-configs.sh) class=kafka.admin.ConfigCommand ;;
  kafka-acls.sh) class=$tools.AclCommand ;;
  kafka-broker-api-versions.sh) class=$tools.BrokerApiVersionsCommand ;;
  kafka-cluster.sh) class=$tools.ClusterTool ;;
  kafka-console-consumer.sh) class=$tools.consumer.ConsoleConsumer ;;
  kafka-console-producer.sh) class=$tools.ConsoleProducer ;;
  kafka-consumer-groups.sh) class=$tools.consumer.group.ConsumerGroupCommand ;;
  kafka-consumer-perf-test.sh) class=$tools.ConsumerPerformance ;;
  kafka-delete-records.sh) class=$tools.DeleteRecordsCommand ;;
  kafka-features.sh) class=$tools.FeatureCommand ;;
  kafka-get-offsets.sh) class=$tools.GetOffsetShell ;;
  kafka-groups.sh) class=$tools.GroupsCommand ;;
  kafka-leader-election.sh) class=$tools.LeaderElectionCommand ;;
  kafka-log-dirs.sh) class=$tools.LogDirsCommand ;;
  kafka-metadata-quorum.sh) class=$tools.MetadataQuorumCommand ;;
  kafka-producer-perf-test.sh) class=$tools.ProducerPerformance ;;
  kafka-reassign-partitions.sh) class=$tools.reassign.ReassignPartitionsCommand ;;
  kafka-topics.sh) class=$tools.TopicCommand ;;
  kafka-transactions.sh) class=$tools.TransactionsCommand ;;
  *) echo "$(basename "$0") is not a tool of Kafka that this image knows" >&2; exit 1 ;;
esac
# The files of the configuration directory exist once the broker has been started.
[ -r "$log" ] || log=/etc/kafka/docker/$(basename "$log")

# Java reads its classes from the file that share-classes left. If it cannot use the file, it reads the jars and says nothing.
shared='-Xlog:cds=off -Xlog:cds+dynamic=off'
if [ -n "${ARCHIVE_CLASSES:-}" ]; then
  shared="-XX:ArchiveClassesAtExit=$archive $shared"
elif [ -r "$archive" ]; then
  shared="-XX:SharedArchiveFile=$archive -Xshare:auto $shared"
fi

# Unquoted on purpose: each of these holds several options.
# shellcheck disable=SC2086
exec java $heap $shared -Djava.awt.headless=true -Dlog4j2.configurationFile="$log" -Dkafka.logs.dir=/opt/kafka/logs \
  ${KAFKA_JVM_PERFORMANCE_OPTS:-} ${KAFKA_JMX_OPTS:-} ${KAFKA_OPTS:-} -cp '/opt/kafka/libs/*' "$class" "$@"
