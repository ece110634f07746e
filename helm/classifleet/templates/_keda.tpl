{{/* How KEDA counts the images that wait for a class: triggers with names, and the sum of them. */}}

{{/* `true` if KEDA scales a class, else empty. Of the root. */}}
{{- define "classifleet.usesKeda" -}}
{{- $used := false -}}
{{- range $name, $_ := .Values.workers -}}
{{- $used = or $used (eq (include "classifleet.class" (list $ $name) | fromYaml).autoscaling.kind "keda") -}}
{{- end -}}
{{- ternary "true" "" $used -}}
{{- end }}

{{/* The queues that count, by trigger name: {q0: classify.default.bulk}. Of a merged class. */}}
{{- define "classifleet.queues" -}}
{{- range $i, $pool := .pools }}
{{- range $lane := $.autoscaling.lanes }}
{{ $lane }}{{ $i }}: classify.{{ $pool }}.{{ $lane }}
{{- end }}
{{- end }}
{{- end }}

{{/* The share of a pod that arrivals may take; empty if they do not count. Of (list $ merged-class). */}}
{{- define "classifleet.arrivalsShare" -}}
{{- if ne (index . 0).Values.keda.signal "redis" -}}
{{- with (index . 1).autoscaling.arrivalsShare }}{{ . }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Of (list $ merged-class). */}}
{{- define "classifleet.kedaSignal" -}}
{{- $root := index . 0 -}}{{- $class := index . 1 -}}
{{- $signal := $root.Values.keda.signal -}}
{{- $settings := merge (deepCopy $class.settings) $root.Values.settings -}}
{{- $terms := list -}}
{{- range $trigger, $queue := include "classifleet.queues" $class | fromYaml -}}
{{- if eq $signal "exporter" -}}
{{- $terms = append $terms $trigger -}}
{{- else if eq $signal "redis" -}}
{{- /* Chunks as images, as if all were full. */ -}}
{{- $chunk := ternary (default 32 $settings.CHUNK_SIZE | int64) 1 (hasSuffix ".bulk" $queue) -}}
{{- $terms = append $terms (printf "(%s_queued + %s_leased) * %d" $trigger $trigger $chunk) -}}
{{- end -}}
{{- end -}}
{{- $waiting := default "images" (join " + " $terms) -}}
{{- with include "classifleet.arrivalsShare" . | float64 -}}
{{- $rates := list -}}
{{- range $terms }}{{ $rates = append $rates (printf "%s_rate" .) }}{{ end -}}
{{- /* As images of a backlog: so many that the target makes of them arrivals / share in images a second. */ -}}
formula: {{ printf "max(%s, (%s) * %v)" $waiting (default "rate" (join " + " $rates)) (divf $class.autoscaling.drainGoalSeconds .) | quote }}
{{- else -}}
formula: {{ $waiting | quote }}
{{- end }}
{{- end }}

{{/* Of (list $ merged-class). */}}
{{- define "classifleet.kedaTriggers" -}}
{{- $root := index . 0 -}}{{- $class := index . 1 -}}{{- $keda := $root.Values.keda -}}
{{- $fullname := include "classifleet.fullname" $root -}}
{{- $target := include "classifleet.target" $class -}}
{{- $queues := include "classifleet.queues" $class | fromYaml -}}
{{- $share := include "classifleet.arrivalsShare" . -}}
triggers:
{{- if eq $keda.signal "exporter" }}
{{- range $trigger, $queue := $queues }}
{{- $figures := dict "" "outstanding_images" }}
{{- if $share }}{{ $_ := set $figures "_rate" "accepted_per_second" }}{{ end }}
{{- range $suffix, $figure := $figures }}
  - type: metrics-api
    name: {{ $trigger }}{{ $suffix }}
    metadata:
      url: http://{{ $fullname }}-exporter.{{ $root.Release.Namespace }}.svc:9464/queues.json
      # GJSON: a dot in a name is written with a backslash.
      valueLocation: 'queues.{{ $queue | replace "." "\\." }}.{{ $figure }}'
      targetValue: {{ quote $target }}
{{- end }}
{{- end }}
{{- else if eq $keda.signal "redis" }}
{{- $namespace := default "default" $root.Values.settings.NAMESPACE }}
{{- range $trigger, $queue := $queues }}
{{- range $state := list "queued" "leased" }}
  - type: redis
    name: {{ $trigger }}_{{ $state }}
    metadata:
      address: {{ default (printf "%s-redis.%s.svc:6379" $fullname $root.Release.Namespace) $keda.redis.address | quote }}
      databaseIndex: {{ $keda.redis.databaseIndex | quote }}
      listName: "classifleet:{ {{- $namespace -}} }:queue:{{ $queue }}:{{ $state }}"
      listLength: {{ quote $target }}
      enableTLS: {{ $keda.redis.tls | quote }}
      unsafeSsl: {{ $keda.redis.unsafeSsl | quote }}
    {{- if include "classifleet.kedaAuthentication" $root | trim }}
    authenticationRef: {name: {{ $fullname }}-keda}
    {{- end }}
{{- end }}
{{- end }}
{{- else }}
{{- $matchers := default (printf "namespace=%q" $root.Release.Namespace) $keda.prometheus.matchers }}
{{- $pattern := printf "classify[.](%s)[.](%s)" (join "|" $class.pools) (join "|" $class.autoscaling.lanes) }}
{{- $selected := printf "classifleet_outstanding_images{queue=~%q,state=~\"queued|leased\",%s}" $pattern $matchers }}
{{- $queries := dict "images" (printf "sum(max by (queue, state) (%s))" $selected) }}
{{- if $share }}
{{- $accepted := printf "classifleet_queue_images_per_second{queue=~%q,what=\"accepted\",%s}" $pattern $matchers }}
{{- $_ := set $queries "rate" (printf "sum(max by (queue) (%s))" $accepted) }}
{{- end }}
{{- range $name, $query := $queries }}
  - type: prometheus
    name: {{ $name }}
    metadata:
      serverAddress: {{ $keda.prometheus.serverAddress | quote }}
      query: {{ $query | squote }}
      threshold: {{ quote $target }}
      # No answer is an error and not a zero, which would scale the fleet away.
      ignoreNullValues: "false"
      {{- with $keda.prometheus.authModes }}
      authModes: {{ quote . }}
      {{- end }}
    {{- if include "classifleet.kedaAuthentication" $root | trim }}
    authenticationRef: {name: {{ $fullname }}-keda}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The list under secretTargetRef; empty if KEDA needs no secrets. Of the root. */}}
{{- define "classifleet.kedaAuthentication" -}}
{{- $used := include "classifleet.usesKeda" . -}}
{{- $keda := .Values.keda -}}
{{- if and $used (eq $keda.signal "redis") }}
{{- if $keda.redis.existingSecret }}
{{- range $parameter, $key := dict "username" $keda.redis.usernameKey "password" $keda.redis.passwordKey "ca" $keda.redis.caKey "cert" $keda.redis.certKey "key" $keda.redis.keyKey }}
{{- if $key }}
- {parameter: {{ $parameter }}, name: {{ quote $keda.redis.existingSecret }}, key: {{ quote $key }}}
{{- end }}
{{- end }}
{{- else if .Values.redis.enabled }}
- {parameter: password, name: {{ include "classifleet.fullname" . }}-redis, key: password}
{{- end }}
{{- else if and $used (eq $keda.signal "prometheus") $keda.prometheus.existingSecret }}
{{- range $keda.prometheus.parameters }}
- {parameter: {{ . }}, name: {{ quote $keda.prometheus.existingSecret }}, key: {{ . }}}
{{- end }}
{{- end }}
{{- end }}
