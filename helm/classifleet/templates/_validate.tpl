{{/* Values that contradict each other. Each sentence says what to change. Of the root. */}}

{{- define "classifleet.validate" -}}
{{- include "classifleet.validateServices" . -}}
{{- include "classifleet.validateModels" . -}}
{{- if not .Values.workers -}}
{{- fail "workers: there is no class of workers; name at least one, such as workers.cpu: {models: [imagenet@1]}" -}}
{{- end -}}
{{- range $name, $given := .Values.workers -}}
{{- $class := include "classifleet.class" (list $ $name) | fromYaml -}}
{{- include "classifleet.validateClass" (list $ $name $class) -}}
{{- include "classifleet.validateDigests" (list $ $name $class) -}}
{{- if and (eq $class.autoscaling.kind "none") $given.autoscaling (not (hasKey (default dict $given.autoscaling) "kind")) -}}
{{- fail (printf "workers.%s: autoscaling.kind is not set, so that its other keys (%s) do nothing; set it to keda or hpa, or remove the others" $name (keys $given.autoscaling | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if ne $class.autoscaling.kind "none" -}}
{{- if hasKey $given "replicas" -}}
{{- fail (printf "workers.%s: replicas is set, and the autoscaler decides about replicas; remove it, or set autoscaling.kind: none" $name) -}}
{{- end -}}
{{- include "classifleet.validateScaling" (list $ $name $class) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "classifleet.validateServices" -}}
{{- $v := .Values -}}
{{- if and (not $v.broker.existingSecret) (not $v.redis.enabled) -}}
{{- fail "broker.existingSecret: there is no broker; name the Secret that holds its URL, or set redis.enabled: true for a trial" -}}
{{- end -}}
{{- if and $v.redis.enabled (or $v.broker.existingSecret $v.ledger.existingSecret) -}}
{{- fail "redis.enabled: there is a broker or a ledger of your own, too; set redis.enabled: false, or remove broker.existingSecret and ledger.existingSecret" -}}
{{- end -}}
{{- if and $v.redis.enabled (ne $v.broker.type "redis") -}}
{{- fail (printf "broker.type is %s, and redis.enabled makes a Redis; set broker.type: redis, or redis.enabled: false" $v.broker.type) -}}
{{- end -}}
{{- if and (ne $v.broker.type "redis") (not $v.ledger.existingSecret) -}}
{{- fail (printf "ledger.existingSecret: the broker is %s, and the ledger needs a Redis; name the Secret that holds its URL" $v.broker.type) -}}
{{- end -}}
{{- if $v.exporter.enabled -}}
{{- include "classifleet.validateResources" (list "exporter" $v.exporter.resources) -}}
{{- end -}}
{{- if and $v.redis.enabled (lt (include "classifleet.quantity" $v.redis.cpu | float64) 0.1) -}}
{{- fail (printf "redis.cpu is %v, and its pod asks for 100m; raise it" $v.redis.cpu) -}}
{{- end -}}
{{- if and $v.monitoring.rules.enabled (not $v.exporter.enabled) -}}
{{- fail "monitoring.rules.enabled: the alerts read the exporter's figures, and ClassifleetExporterAway would never end; set exporter.enabled: true, or monitoring.rules.enabled: false" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled $v.networkPolicy.egress.enabled (not $v.networkPolicy.egress.to) (not $v.redis.enabled) -}}
{{- fail "networkPolicy.egress.to: no rule leads to the broker and the ledger; add one, or set networkPolicy.egress.enabled: false" -}}
{{- end -}}
{{- end }}

{{- define "classifleet.validateModels" -}}
{{- $models := .Values.models -}}
{{- $volume := $models.volume -}}
{{- if and $models.source $models.build -}}
{{- fail "models: source and build are both set; fetch the models or build them, and remove the other" -}}
{{- end -}}
{{- if and $volume.readOnly (or $models.source $models.build) -}}
{{- fail "models.volume.readOnly: models.source or models.build writes to the volume; set readOnly: false, or remove these" -}}
{{- end -}}
{{- if and $models.digests (not $models.source) -}}
{{- fail "models.digests: they are checked when models are fetched; set models.source, or remove them" -}}
{{- end -}}
{{- if and $volume.existingClaim (ne $volume.type "claim") -}}
{{- fail (printf "models.volume.existingClaim is set, and models.volume.type is %s, which has no claim; set models.volume.type: claim, or remove existingClaim" $volume.type) -}}
{{- end -}}
{{- if and (not $models.source) (not $models.build) (or (eq $volume.type "emptyDir") (and (eq $volume.type "claim") (not $volume.existingClaim))) -}}
{{- fail "models: the volume starts empty and nothing brings models to it; set models.source (or models.build for a trial), or models.volume.type: claim with an existingClaim that holds them" -}}
{{- end -}}
{{- if and (eq $volume.type "claim") (not $volume.existingClaim) (not (has "ReadWriteMany" $volume.accessModes)) -}}
{{- range $name, $_ := .Values.workers -}}
{{- $class := include "classifleet.class" (list $ $name) | fromYaml -}}
{{- if or (gt (len $.Values.workers) 1) (ne $class.autoscaling.kind "none") (gt (int $class.replicas) 1) -}}
{{- fail "models.volume.accessModes: there is more than one pod for one volume; use ReadWriteMany, or models.volume.type: emptyDir" -}}
{{- end -}}
{{- $strategy := $class.strategy -}}
{{- if and (eq $strategy.type "RollingUpdate") (not (has (toString $strategy.rollingUpdate.maxSurge) (list "0" "0%"))) -}}
{{- fail (printf "workers.%s: strategy.rollingUpdate.maxSurge is %v, and a second pod cannot have the volume while the first has it (models.volume.accessModes); set maxSurge: 0 and maxUnavailable: 1, or use ReadWriteMany" $name $strategy.rollingUpdate.maxSurge) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* With digests, nothing is loaded that has none. Of (list $ name merged-class). */}}
{{- define "classifleet.validateDigests" -}}
{{- $digests := (index . 0).Values.models.digests -}}{{- $name := index . 1 -}}{{- $models := (index . 2).models -}}
{{- if and $digests (not $models) -}}
{{- fail (printf "workers.%s: models is empty, so that all are loaded, also such as have no digest; name those of models.digests" $name) -}}
{{- end -}}
{{- range $models -}}
{{- if and $digests (not (hasKey $digests .)) -}}
{{- fail (printf "workers.%s: models has %s, and models.digests has not; name a version, and add its sha256 there" $name .) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A quantity of Kubernetes, such as 500m or 4Gi, as a number. */}}
{{- define "classifleet.quantity" -}}
{{- $units := dict "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 0x1p10 "Mi" 0x1p20 "Gi" 0x1p30 "Ti" 0x1p40 "Pi" 0x1p50 "Ei" 0x1p60 -}}
{{- $unit := regexFind "[A-Za-z]+$" (toString .) -}}
{{- mulf (toString . | trimSuffix $unit) (default 1.0 (get $units $unit)) -}}
{{- end }}

{{/* Of (list whose resources). */}}
{{- define "classifleet.validateResources" -}}
{{- $whose := index . 0 -}}{{- $limits := default dict (index . 1).limits -}}
{{- range $what, $request := (index . 1).requests -}}
{{- $limit := get $limits $what -}}
{{- if and (ne (toString $limit) "") (gt (include "classifleet.quantity" $request | float64) (include "classifleet.quantity" $limit | float64)) -}}
{{- fail (printf "%s: resources.requests.%s (%v) is above resources.limits.%s (%v); lower it, or raise the other (one that is not given is that of the defaults)" $whose $what $request $what $limit) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Of (list $ name merged-class). */}}
{{- define "classifleet.validateClass" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $class := index . 2 -}}
{{- $least := include "classifleet.leastGrace" $class | int -}}
{{- $grace := default $least $class.terminationGracePeriodSeconds | int -}}
{{- if lt $grace $least -}}
{{- fail (printf "workers.%s: terminationGracePeriodSeconds is %d, and a drain takes up to %d (drainSeconds + 30), so that Kubernetes would kill chunks at work; raise it, or lower drainSeconds" $name $grace $least) -}}
{{- end -}}
{{- include "classifleet.validateResources" (list (printf "workers.%s" $name) $class.resources) -}}
{{- $rolling := $class.strategy.rollingUpdate -}}
{{- if and (eq $class.strategy.type "RollingUpdate") (has (toString $rolling.maxSurge) (list "0" "0%")) (has (toString $rolling.maxUnavailable) (list "0" "0%")) -}}
{{- fail (printf "workers.%s: strategy.rollingUpdate lets no pod come before one goes (maxSurge) nor one go before another comes (maxUnavailable); raise one of them" $name) -}}
{{- end -}}
{{- $settings := mergeOverwrite (deepCopy $root.Values.settings) $class.settings -}}
{{- range list "NAMESPACE" "OBJECTIVE_SECONDS" "POOLS" -}}
{{- if hasKey $class.settings . -}}
{{- fail (printf "workers.%s: settings.%s is of one class, and the exporter and other classes would not know it; write it into settings at the top" $name .) -}}
{{- end -}}
{{- end -}}
{{- $lease := default 60 $settings.LEASE_SECONDS | float64 -}}
{{- $stock := or (eq $root.Values.broker.type "sqs") (and (eq $root.Values.broker.type "redis") (eq (default "atomic" $settings.TRANSPORT) "stock")) -}}
{{- if and $stock (ge $lease 300.0) -}}
{{- fail (printf "workers.%s: LEASE_SECONDS is %v, and this broker gives a message to another worker after 300 s (its visibility timeout), while the lease still holds; set LEASE_SECONDS below 300" $name $lease) -}}
{{- end -}}
{{- $chunk := default 900 $settings.CHUNK_TIMEOUT_SECONDS | float64 -}}
{{- if and (eq $root.Values.broker.type "amqp") (ge $chunk 1800.0) -}}
{{- fail (printf "workers.%s: CHUNK_TIMEOUT_SECONDS is %v, and RabbitMQ gives a message to another worker if none has acknowledged it after 1800 s (its consumer_timeout), while the chunk may be at work; set CHUNK_TIMEOUT_SECONDS below 1800" $name $chunk) -}}
{{- end -}}
{{- if gt (float64 $class.drainSeconds) $chunk -}}
{{- fail (printf "workers.%s: drainSeconds is %v, and no chunk is at work for longer than CHUNK_TIMEOUT_SECONDS (%v); lower drainSeconds, or raise the other" $name $class.drainSeconds $chunk) -}}
{{- end -}}
{{- end }}

{{/* Of (list $ name merged-class). */}}
{{- define "classifleet.validateScaling" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $class := index . 2 -}}{{- $scaling := $class.autoscaling -}}
{{- if gt (int $scaling.minReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "workers.%s: autoscaling.minReplicas (%d) is above maxReplicas (%d); lower it, or raise the other" $name (int $scaling.minReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq (int $scaling.minReplicas) 0) (eq $scaling.kind "hpa") -}}
{{- fail (printf "workers.%s: autoscaling.minReplicas is 0, and a HorizontalPodAutoscaler cannot wake a class from zero; set it to 1, or autoscaling.kind: keda" $name) -}}
{{- end -}}
{{- if and (eq (int $scaling.minReplicas) 0) (not $root.Values.exporter.enabled) -}}
{{- fail (printf "workers.%s: autoscaling.minReplicas is 0 and exporter.enabled is false, so that at zero workers nothing would look after the ledger; set exporter.enabled: true, or minReplicas: 1" $name) -}}
{{- end -}}
{{- if eq $scaling.kind "keda" -}}
{{- include "classifleet.validateKeda" . -}}
{{- end -}}
{{- end }}

{{/* Of (list $ name merged-class). */}}
{{- define "classifleet.validateKeda" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $class := index . 2 -}}{{- $scaling := $class.autoscaling -}}{{- $keda := $root.Values.keda -}}
{{- if not $scaling.imagesPerSecondPerReplica -}}
{{- fail (printf "workers.%s: autoscaling.imagesPerSecondPerReplica is not set; measure what one pod does with full batches (docs/autoscaling.md) and write it there" $name) -}}
{{- end -}}
{{- $target := include "classifleet.target" $class | int64 -}}
{{- $window := include "classifleet.window" (list $root $class) | int64 -}}
{{- if le $target $window -}}
{{- fail (printf "workers.%s: the target is %d images a replica (imagesPerSecondPerReplica * drainGoalSeconds), and one replica holds up to %d at a time (CHUNKS_IN_FLIGHT * CHUNK_SIZE), so that more would start than find work; raise drainGoalSeconds, or lower CHUNKS_IN_FLIGHT in its settings" $name $target $window) -}}
{{- end -}}
{{- if gt (int $scaling.fallbackReplicas) (int $scaling.maxReplicas) -}}
{{- fail (printf "workers.%s: autoscaling.fallbackReplicas (%d) is above maxReplicas (%d); lower it, or raise the other" $name (int $scaling.fallbackReplicas) (int $scaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq $keda.signal "exporter") (not $root.Values.exporter.enabled) -}}
{{- fail (printf "workers.%s: keda.signal is exporter, and exporter.enabled is false; set exporter.enabled: true, or another keda.signal" $name) -}}
{{- end -}}
{{- if and (eq $keda.signal "redis") (dig "autoscaling" "arrivalsShare" false (index $root.Values.workers $name)) -}}
{{- fail (printf "workers.%s: autoscaling.arrivalsShare is set, and keda.signal is redis, which has no figure of arrivals; remove it, or take another keda.signal" $name) -}}
{{- end -}}
{{- if and (eq $keda.signal "redis") (not $keda.redis.address) (not $root.Values.redis.enabled) -}}
{{- fail "keda.redis.address: keda.signal is redis, and KEDA takes no URL; write host:port of the ledger there" -}}
{{- end -}}
{{- if and (eq $keda.signal "prometheus") (not $keda.prometheus.serverAddress) -}}
{{- fail "keda.prometheus.serverAddress: keda.signal is prometheus; write the URL of the server there" -}}
{{- end -}}
{{- if and (eq $keda.signal "prometheus") (not $root.Values.exporter.enabled) (not $keda.prometheus.matchers) -}}
{{- fail (printf "workers.%s: keda.signal is prometheus, and exporter.enabled is false, so that nothing here shows Prometheus what waits; set exporter.enabled: true, or keda.prometheus.matchers to those of another exporter" $name) -}}
{{- end -}}
{{- end }}
