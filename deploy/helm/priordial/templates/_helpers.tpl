{{- define "priordial.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "priordial.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "priordial.labels" -}}
{{ include "priordial.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "priordial.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "priordial.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "priordial.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "priordial.checked" -}}
{{- $sources := compact (list .Values.models.persistentVolumeClaim .Values.models.image .Values.models.hostPath .Values.models.url) }}
{{- if ne (len $sources) 1 }}
{{- fail (printf "models has %d sources; set exactly one of models.persistentVolumeClaim, models.image, models.hostPath and models.url" (len $sources)) }}
{{- end }}
{{- if not .Values.store.existingSecret }}
{{- fail "store.existingSecret is empty; name a Secret whose key 'store' holds postgresql://USER:PASSWORD@HOST/DATABASE" }}
{{- end }}
{{- if and (not .Values.apiKeys.existingSecret) (not .Values.apiKeys.allowAnonymous) }}
{{- fail "apiKeys.existingSecret is empty; name a Secret of API keys, or set apiKeys.allowAnonymous: true" }}
{{- end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling and keda are both enabled; two scalers of one Deployment work against each other: enable one" }}
{{- end }}
{{- $drain := add (int .Values.preStopSeconds) (int (default 5 .Values.settings.drainSeconds)) }}
{{- if le (int .Values.terminationGracePeriodSeconds) (int $drain) }}
{{- fail (printf "terminationGracePeriodSeconds is %d; it must be larger than preStopSeconds + settings.drainSeconds = %d" (int .Values.terminationGracePeriodSeconds) (int $drain)) }}
{{- end }}
{{- $copy := int64 (default 0 .Values.settings.modelsCacheMib) }}
{{- if and .Values.models.url (gt $copy (include "priordial.volumeMib" . | int64)) }}
{{- fail (printf "settings.modelsCacheMib is %d, more than models.cacheSize, %s: Kubernetes would end pods whose copy fills it; raise models.cacheSize, or leave settings.modelsCacheMib out" $copy .Values.models.cacheSize) }}
{{- end }}
{{- end }}

{{- /* MiB of the volume for the local copy of models. */ -}}
{{- define "priordial.volumeMib" -}}
{{- $unit := get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[MGT]i$" .Values.models.cacheSize) }}
{{- mul (regexFind "^[0-9]+" .Values.models.cacheSize | int64) $unit }}
{{- end }}

{{- define "priordial.env" -}}
- {name: PRIORDIAL_HOST, value: 0.0.0.0}
- {name: PRIORDIAL_PORT, value: "8000"}
- {name: PRIORDIAL_METRICS_PORT, value: {{ .Values.metricsPort | quote }}}
{{- if .Values.models.url }}
- {name: PRIORDIAL_MODELS, value: {{ .Values.models.url | quote }}}
- {name: PRIORDIAL_MODELS_CACHE, value: /models}
{{- else }}
- {name: PRIORDIAL_MODELS, value: /models}
{{- end }}
- name: PRIORDIAL_STORE
  valueFrom: {secretKeyRef: {name: {{ .Values.store.existingSecret }}, key: {{ .Values.store.key }}}}
{{- with .Values.store.readsKey }}
- name: PRIORDIAL_STORE_READS
  valueFrom: {secretKeyRef: {name: {{ $.Values.store.existingSecret }}, key: {{ . }}}}
{{- end }}
{{- if .Values.apiKeys.existingSecret }}
- {name: PRIORDIAL_KEYS, value: /etc/priordial/api_keys}
{{- else }}
- {name: PRIORDIAL_ALLOW_ANONYMOUS, value: "true"}
{{- end }}
{{- $settings := merge (dict) .Values.settings (dict "logFormat" "json" "drainSeconds" 5) }}
{{- if .Values.models.url }}{{ $settings = merge (dict) $settings (dict "modelsCacheMib" (div (mul 9 (include "priordial.volumeMib" . | int64)) 10 | max 1)) }}{{ end }}
{{- if .Values.gpu.enabled }}{{ $settings = merge (dict) $settings (dict "provider" "cuda") }}{{ end }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
- {name: PRIORDIAL_{{ $name | snakecase | upper }}, value: {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value | quote }}{{ else }}{{ $value | quote }}{{ end }}{{ else }}{{ $value | quote }}{{ end }}}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "priordial.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 10001
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}
