{{/* The classes of workers, and what follows from their values. */}}

{{/* A class over the defaults, as YAML. Of (list $ class). */}}
{{- define "classifleet.class" -}}
{{- $root := index . 0 -}}
{{- mergeOverwrite (deepCopy $root.Values.workerDefaults) (index $root.Values.workers (index . 1) | deepCopy) | toYaml -}}
{{- end }}

{{/* drain_seconds, and the 30 s in which a drain ends whatever hangs (docs/operations.md). */}}
{{- define "classifleet.leastGrace" -}}
{{- add .drainSeconds 30 -}}
{{- end }}

{{/* Outstanding images for one replica: what it does within the goal. */}}
{{- define "classifleet.target" -}}
{{- mulf .autoscaling.imagesPerSecondPerReplica .autoscaling.drainGoalSeconds | floor | int64 -}}
{{- end }}

{{/* Images that one replica may hold at one time. Of (list $ merged-class). */}}
{{- define "classifleet.window" -}}
{{- $settings := merge (deepCopy (index . 1).settings) (index . 0).Values.settings -}}
{{- $chunk := ternary (default 32 $settings.CHUNK_SIZE | int64) 8 (has "bulk" (index . 1).autoscaling.lanes) -}}
{{- mul (default 32 $settings.CHUNKS_IN_FLIGHT | int64) $chunk -}}
{{- end }}

{{/*
Whether workers may not write to the volume of the models. Their tuning cache there would hold compiled code: with pinned
models no other pod, and nobody who can write to the volume, may bring any. Of the root.
*/}}
{{- define "classifleet.modelsReadOnly" -}}
{{- with .Values.models -}}
{{- or .volume.readOnly (and (not (empty .digests)) (ne .volume.type "emptyDir")) -}}
{{- end -}}
{{- end }}

{{/* The settings of a class, or of the exporter where class is empty: CLASSIFLEET_* as YAML. Of (list $ class). */}}
{{- define "classifleet.settings" -}}
{{- $root := index . 0 -}}
{{- $given := deepCopy $root.Values.settings -}}
{{- $own := dict "HTTP_HOST" "::" "HTTP_PORT" "9464" -}}
{{- if index . 1 -}}
{{- $class := include "classifleet.class" . | fromYaml -}}
{{- $given = mergeOverwrite $given $class.settings -}}
{{- $own = merge $own (dict
      "QUEUES" (join "," $class.pools)
      "MODELS" (join "," $class.models)
      "MODEL_REPOSITORY" "/models"
      "DEVICE" (ternary "cuda" "cpu" $class.gpu.enabled)
      "DRAIN_SECONDS" $class.drainSeconds) -}}
{{- if eq (include "classifleet.modelsReadOnly" $root) "true" -}}
{{- $own = set $own "TUNING_CACHE" "/tmp/tuning" -}}
{{- end -}}
{{- else -}}
{{- $pools := list -}}
{{- range $name, $_ := $root.Values.workers -}}
{{- $pools = concat $pools (include "classifleet.class" (list $root $name) | fromYaml).pools -}}
{{- end -}}
{{- $own = set $own "QUEUES" (uniq $pools | sortAlpha | join ",") -}}
{{- end -}}
{{- range $name, $value := merge $own $given }}
CLASSIFLEET_{{ $name }}: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}

{{/* Environment from Secrets, for workers and exporter. Of the root. */}}
{{- define "classifleet.secrets" -}}
{{- with include "classifleet.urlFrom" (list . "broker") }}
- {name: CLASSIFLEET_BROKER_URL, valueFrom: {secretKeyRef: {{ . }}}}
{{- end }}
{{- with include "classifleet.urlFrom" (list . "ledger") }}
- {name: CLASSIFLEET_REDIS_URL, valueFrom: {secretKeyRef: {{ . }}}}
{{- end }}
{{- include "classifleet.storeAccess" . }}
{{- end }}

{{/* Access to object storage, and what values add to all pods. Of the root. */}}
{{- define "classifleet.storeAccess" -}}
{{- with .Values.s3.region }}
- {name: AWS_DEFAULT_REGION, value: {{ quote . }}}
{{- end }}
{{- with .Values.s3 }}
{{- if .existingSecret }}
- {name: AWS_ACCESS_KEY_ID, valueFrom: {secretKeyRef: {name: {{ quote .existingSecret }}, key: {{ quote .accessKeyIdKey }}}}}
- {name: AWS_SECRET_ACCESS_KEY, valueFrom: {secretKeyRef: {name: {{ quote .existingSecret }}, key: {{ quote .secretAccessKeyKey }}}}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What all pods of ours have in common. Of the root. */}}
{{- define "classifleet.podSpec" -}}
serviceAccountName: {{ include "classifleet.serviceAccount" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- end }}

{{/* Where a pod may run. Of merged values with nodeSelector, tolerations, affinity, priorityClassName. */}}
{{- define "classifleet.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ quote . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The arguments of the init container that brings models to the volume. Of (list $ merged-class). */}}
{{- define "classifleet.modelArguments" -}}
{{- $models := (index . 0).Values.models -}}
{{- if $models.source }}
- models
- fetch
- {{ $models.source | quote }}
{{- range (index . 1).models }}
- {{ quote . }}
{{- end }}
{{- /* Its own alone: another class' model must not roll this one. */}}
{{- range $key := (index . 1).models }}
{{- with get (default dict $models.digests) $key }}
- --pin={{ $key }}={{ . }}
{{- end }}
{{- end }}
- --repository=/models
{{- else if $models.build }}
- models
- build
{{- range $models.build }}
- {{ quote . }}
{{- end }}
- --repository=/models
{{- end }}
{{- end }}
