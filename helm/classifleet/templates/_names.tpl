{{/* Names, labels and images. */}}

{{- define "classifleet.fullname" -}}
{{- $name := default "classifleet" .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- /* A release's name may hold dots, that of a Service may not. */ -}}
{{- default $full .Values.fullnameOverride | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What selects pods: it never changes for as long as the release lives. Of (list $ component class). */}}
{{- define "classifleet.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default "classifleet" $root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- with index . 2 }}
classifleet/class: {{ quote . }}
{{- end }}
{{- end }}

{{/* Labels of a pod: without versions, with which every new chart would roll every pod. Of (list $ component class extra). */}}
{{- define "classifleet.podLabels" -}}
{{- with mergeOverwrite (deepCopy (index . 3)) (index . 0).Values.commonLabels (include "classifleet.selector" . | fromYaml) }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{/* All labels of an object. Of (list $ component class), or (list $ component class labels-that-win). */}}
{{- define "classifleet.labels" -}}
{{- $root := index . 0 -}}
{{- $labels := include "classifleet.selector" . | fromYaml -}}
{{- $labels = merge $labels (dict
      "app.kubernetes.io/version" $root.Chart.AppVersion
      "app.kubernetes.io/managed-by" $root.Release.Service
      "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_")) $root.Values.commonLabels -}}
{{- if gt (len .) 3 -}}
{{- $labels = mergeOverwrite $labels (index . 3) -}}
{{- end -}}
{{- toYaml $labels }}
{{- end }}

{{/* Metadata of an object. Of (list $ name component class), or (list $ name component class labels-that-win). */}}
{{- define "classifleet.metadata" -}}
name: {{ index . 1 | quote }}
namespace: {{ (index . 0).Release.Namespace | quote }}
labels:
  {{- include "classifleet.labels" (concat (slice . 0 1) (slice . 2)) | nindent 2 }}
{{- end }}

{{/* Of (list $ variant), where variant is cuda, cpu or exporter. */}}
{{- define "classifleet.image" -}}
{{- $root := index . 0 -}}
{{- $image := $root.Values.image -}}
{{- $tag := printf "%s-%s" (default $root.Chart.AppVersion $image.tag) (index . 1) -}}
{{- $made := printf "%s:%s" (list $image.registry $image.repository | compact | join "/") $tag -}}
{{- index $image.references (index . 1) | default $made -}}
{{- end }}

{{- define "classifleet.serviceAccount" -}}
{{- $made := ternary (include "classifleet.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end }}

{{/* The Secret and key of a URL. Of (list $ "broker"|"ledger"|"contentCache"); empty if there is none. */}}
{{- define "classifleet.urlFrom" -}}
{{- $root := index . 0 -}}
{{- $place := index $root.Values (index . 1) -}}
{{- if $place.existingSecret -}}
{name: {{ quote $place.existingSecret }}, key: {{ quote $place.key }}}
{{- else if and $root.Values.redis.enabled (eq (index . 1) "broker") -}}
{name: {{ include "classifleet.fullname" $root }}-redis, key: broker-url}
{{- end -}}
{{- end }}
