{{/* The name of everything in the release's namespace. Replicas carry app.kubernetes.io/name: smartspec; the operator never
     does, or the Service of a SmartSpec named like the release would find its pods. */}}
{{- define "smartspec.fullname" -}}
{{- printf "%s-operator" (.Release.Name | trunc 43 | trimSuffix "-") -}}
{{- end -}}

{{- define "smartspec.selector" -}}
app.kubernetes.io/name: smartspec-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: controller
{{- end -}}

{{/* Labels of an object; call with (dict "context" $ "component" "..."). */}}
{{- define "smartspec.labels" -}}
app.kubernetes.io/name: smartspec-operator
app.kubernetes.io/instance: {{ .context.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: smartspec
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "smartspec.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "smartspec.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* REPOSITORY@DIGEST or REPOSITORY:TAG; call with (dict "context" $ "image" .Values.image). */}}
{{- define "smartspec.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .context.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What the restricted Pod Security profile asks of a container. */}}
{{- define "smartspec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What it asks of a pod. The user is the image's own, so that platforms which assign one may. */}}
{{- define "smartspec.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Where SmartSpecs of this release live, for what needs one namespace: the one that is watched, else the release's. */}}
{{- define "smartspec.servedNamespace" -}}
{{- .Values.watchNamespace | default .Release.Namespace -}}
{{- end -}}

{{/* Remove CEL rules from a schema, in place: API servers before 1.25 do not know them, and helm refuses what they do not. */}}
{{- define "smartspec.dropRules" -}}
{{- if kindIs "map" . -}}
{{- $_ := unset . "x-kubernetes-validations" -}}
{{- range $key, $value := . }}{{ include "smartspec.dropRules" $value }}{{ end -}}
{{- else if kindIs "slice" . -}}
{{- range . }}{{ include "smartspec.dropRules" . }}{{ end -}}
{{- end -}}
{{- end -}}
