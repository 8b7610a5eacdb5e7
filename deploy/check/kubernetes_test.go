package check

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

const manifests = deploy + "/kubernetes"

// decode reads the objects of a manifest. An unknown field and a repeated field are errors.
func decode(t *testing.T, path string) (objects []runtime.Object) {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(scheme), appsv1.AddToScheme(scheme), batchv1.AddToScheme(scheme),
		policyv1.AddToScheme(scheme), networkingv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	documents := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		objects = append(objects, object)
	}
}

// cluster holds the objects of the manifests.
type cluster struct {
	pods      map[string]*corev1.PodTemplateSpec
	server    *appsv1.Deployment
	budget    *policyv1.PodDisruptionBudget
	service   *corev1.Service
	policy    *networkingv1.NetworkPolicy
	account   *corev1.ServiceAccount
	namespace *corev1.Namespace
	config    map[string]string
	secrets   map[string]map[string]string // the content of each secret, by the secret's name, as in the example
}

func readCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{pods: map[string]*corev1.PodTemplateSpec{}, secrets: map[string]map[string]string{}}
	paths, err := filepath.Glob(manifests + "/*.yaml*")
	if err != nil || len(paths) < 5 {
		t.Fatalf("manifests: %q, %v", paths, err)
	}
	for _, path := range paths {
		for _, object := range decode(t, path) {
			if namespaced, ok := object.(metav1.Object); ok && namespaced.GetNamespace() != "watchword" {
				if _, is := object.(*corev1.Namespace); !is {
					t.Errorf("%s: %s is in namespace %q", path, namespaced.GetName(), namespaced.GetNamespace())
				}
			}
			switch o := object.(type) {
			case *appsv1.Deployment:
				c.server, c.pods["Deployment"] = o, &o.Spec.Template
			case *batchv1.Job:
				c.pods["Job"] = &o.Spec.Template
			case *policyv1.PodDisruptionBudget:
				c.budget = o
			case *corev1.Service:
				c.service = o
			case *networkingv1.NetworkPolicy:
				c.policy = o
			case *corev1.ServiceAccount:
				c.account = o
			case *corev1.Namespace:
				c.namespace = o
			case *corev1.ConfigMap:
				c.config = o.Data
			case *corev1.Secret:
				if !strings.HasSuffix(path, ".example") {
					t.Errorf("%s: kubectl apply would replace the secret %s", path, o.Name)
				}
				c.secrets[o.Name] = o.StringData
			default:
				t.Errorf("%s: unexpected %T", path, o)
			}
		}
	}
	return c
}

// TestPods checks each pod by the standard of the namespace, and by what the standard leaves
// out.
func TestPods(t *testing.T) {
	c := readCluster(t)
	if level := c.namespace.Labels[api.EnforceLevelLabel]; level != string(api.LevelRestricted) {
		t.Errorf("the namespace enforces %q", level)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for name, pod := range c.pods {
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &pod.ObjectMeta, &pod.Spec))
		if !result.Allowed {
			t.Errorf("%s: %s", name, result.ForbiddenDetail())
		}
		if automount := pod.Spec.AutomountServiceAccountToken; automount == nil || *automount {
			t.Errorf("%s: the pod gets a token of the service account", name)
		}
		if links := pod.Spec.EnableServiceLinks; links == nil || *links {
			t.Errorf("%s: Kubernetes sets variables such as WATCHWORD_PORT", name)
		}
		if len(pod.Spec.Containers) != 1 {
			t.Fatalf("%s: %d containers", name, len(pod.Spec.Containers))
		}
		container := pod.Spec.Containers[0]
		if ro := container.SecurityContext.ReadOnlyRootFilesystem; ro == nil || !*ro {
			t.Errorf("%s: the root file system is writable", name)
		}
		if container.Resources.Requests.Cpu().IsZero() || container.Resources.Requests.Memory().IsZero() || container.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s: requests or limits are missing: %v", name, container.Resources)
		}
		wantFiles(t, name, c, pod)
	}
	if *c.account.AutomountServiceAccountToken {
		t.Error("pods get a token of the service account")
	}
}

// variables returns the environment of a pod's container.
func (c *cluster) variables(pod *corev1.PodTemplateSpec) map[string]string {
	all := map[string]string{}
	for name, value := range c.config {
		all[name] = value
	}
	for _, v := range pod.Spec.Containers[0].Env {
		all[v.Name] = v.Value
	}
	return all
}

// wantFiles checks that each file in a variable of a pod is in a volume, and in the example of
// the volume's secret.
func wantFiles(t *testing.T, name string, c *cluster, pod *corev1.PodTemplateSpec) {
	t.Helper()
	secretOf := map[string]string{} // the secret, by mount path; "" for a folder in memory
	for _, mount := range pod.Spec.Containers[0].VolumeMounts {
		for _, volume := range pod.Spec.Volumes {
			if volume.Name != mount.Name {
				continue
			}
			secretOf[mount.MountPath] = ""
			if volume.Secret != nil {
				secretOf[mount.MountPath] = volume.Secret.SecretName
				if mode := volume.Secret.DefaultMode; mode == nil || *mode != 0o440 {
					t.Errorf("%s: every user may read the files of %s", name, volume.Secret.SecretName)
				}
			}
		}
	}
	file := regexp.MustCompile(`/run/[\w./-]+`)
	for variable, value := range c.variables(pod) {
		for _, path := range file.FindAllString(value, -1) {
			secret, mounted := secretOf[filepath.Dir(path)]
			if _, exists := c.secrets[secret][filepath.Base(path)]; !mounted || secret != "" && !exists {
				t.Errorf("%s: %s names %s, which is in no volume and secret", name, variable, path)
			}
		}
	}
}

// TestServerPods checks how replicas start, stop and are found.
func TestServerPods(t *testing.T) {
	c := readCluster(t)
	spec := c.server.Spec
	if *spec.Replicas < 2 {
		t.Errorf("%d replicas", *spec.Replicas)
	}
	if *spec.Template.Spec.TerminationGracePeriodSeconds < 1 {
		t.Error("no grace period")
	}
	environment := c.variables(&spec.Template)
	if parse(t, environment["WATCHWORD_SHUTDOWN_DELAY"]) < time.Second {
		t.Error("WATCHWORD_SHUTDOWN_DELAY gives clients no time")
	}
	wantTimeToStop(t, "terminationGracePeriodSeconds",
		time.Duration(*spec.Template.Spec.TerminationGracePeriodSeconds)*time.Second, environment)
	container := spec.Template.Spec.Containers[0]
	for _, probe := range []struct {
		name, path string
		probe      *corev1.Probe
	}{{"startup", "/healthz", container.StartupProbe}, {"readiness", "/readyz", container.ReadinessProbe}, {"liveness", "/healthz", container.LivenessProbe}} {
		get := probe.probe.HTTPGet
		if get == nil || get.Path != probe.path || get.Scheme != corev1.URISchemeHTTPS || get.Port.StrVal != "http" {
			t.Errorf("the %s probe asks %v", probe.name, get)
		}
	}
	pods := labels.Set(spec.Template.Labels)
	for name, selector := range map[string]*metav1.LabelSelector{
		"Deployment": spec.Selector, "PodDisruptionBudget": c.budget.Spec.Selector, "NetworkPolicy": &c.policy.Spec.PodSelector,
		"Service":             metav1.SetAsLabelSelector(c.service.Spec.Selector),
		"the spread by nodes": spec.Template.Spec.TopologySpreadConstraints[0].LabelSelector,
		"the spread by zones": spec.Template.Spec.TopologySpreadConstraints[1].LabelSelector,
	} {
		parsed, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil || parsed.Empty() || !parsed.Matches(pods) {
			t.Errorf("%s selects %s, and the pods have %v (%v)", name, parsed, pods, err)
		}
		if job := labels.Set(c.pods["Job"].Labels); name != "NetworkPolicy" && parsed.Matches(job) {
			t.Errorf("%s selects the pods of the migration too", name)
		}
	}
	if c.service.Spec.ClusterIP != corev1.ClusterIPNone {
		t.Error("the service has one address, and each client would call one replica")
	}
}

// TestClientServiceConfig lets gRPC read the service config for clients.
func TestClientServiceConfig(t *testing.T) {
	config := read(t, manifests+"/client-service-config.json")
	if !strings.Contains(read(t, "../../docs/migrations.md"), "```json\n"+config+"```") {
		t.Error("the service config is another than the one of docs/migrations.md, which the tests of tokensource run")
	}
	conn, err := grpc.NewClient("dns:///watchword.watchword.svc:50051",
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(config))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}
