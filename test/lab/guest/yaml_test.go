package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

func TestEveryWayToWriteAString(t *testing.T) {
	for source, want := range map[string]string{
		"a: plain":                   "plain",
		"a: plain # comment":         "plain",
		"a: plain#no comment":        "plain#no comment",
		"a: http://x:80/y":           "http://x:80/y",
		"a: two\n  lines\n\n  three": "two lines\nthree",
		"a: ''":                      "",
		"a: 'it''s'":                 "it's",
		"a: 'x\n\n  y  \n  z'":       "x\ny z",
		`a: "tab\tnew\nline\x41\u00e9\U0001f600"`: "tab\tnew\nlineAé😀",
		"a: \"x \\\n   \\ y\"":                    "x  y",
		"a: \"x\n  y\" # comment":                 "x y",
		"a: |\n  x\n   y\n\n  z\n":                "x\n y\n\nz\n",
		"a: |-\n  x\n":                            "x",
		"a: |+\n  x\n\n":                          "x\n\n",
		"a: |2\n    x\n":                          "  x\n",
		"a: |1-\n   x\n":                          "  x",
		"a: |\n  # no comment\n  a: b\n":          "# no comment\na: b\n",
		"a: |\n  x\n# comment":                    "x\n",
		"a: |\nb: y":                              "",
		"a: >\n  x\n  y\n\n  z\n":                 "x y\nz\n",
		"a: >-\n  x\n   more\n  y\n":              "x\n more\ny",
		"a:\n  |\n  x\n":                          "x\n",
		"a:\n  \"x\"":                             "x",
	} {
		root, err := parseYAML(source)
		if err != nil {
			t.Errorf("%q: %v", source, err)
			continue
		}
		if got := root.get("a"); got.kind != stringNode || got.value != want {
			t.Errorf("%q is %q (kind %d), want %q", source, got.value, got.kind, want)
		}
	}
}

func TestStrictnessOfYAML(t *testing.T) {
	for _, source := range []string{
		"", "# nothing", "---\na: b", "%YAML 1.2\n---\na: b", "a: {b: c}", "a: [b]", "a: &x b", "a: *x", "a: !!str b", "a: b\na: c",
		"a: b\n  c: d", "a: b: c", "a: \"b", "a: 'b", "a: \"b\" c", "a: \"\\q\"", "a: \"\\ud800\"", "a: |x\n b", "a: b\n\tc: d", "\ta: b",
		"a: \x07", "a: \u0085", "a: \u2028", "a: \ufeff", "a: \xff", "a: b\r\n", "a: - b", "a: @b", "- a\nb: c", "a: b\n- c", "a: |\n    \n  x\n",
	} {
		if root, err := parseYAML(source); err == nil {
			t.Errorf("%q was read as %+v", source, root)
		}
	}
	for _, value := range []string{"", "~", "null", "true", "No", "12", "1_000", "0x1f", "1.5", ".inf", "1e3", "12:30:45", "2026-01-01"} {
		root, err := parseYAML("a: " + value)
		if err != nil || root.get("a").kind != otherNode {
			t.Errorf("%q was read as a string: %v", value, err)
		}
	}
}

func TestCloudConfig(t *testing.T) {
	for _, source := range []string{
		"#cloud-config\nwrite_files:\n- path: /a\n  content: x\n- content: z\n  path: /b\n",
		"#cloud-config\nwrite_files:\n  - path: /a\n    content: x\n  -\n    path: /b\n    content: z\n",
		"#cloud-config\n# comment\nwrite_files:\n\n  -   path: '/a'\n      content: \"x\"\n\n  - {}\n",
	} {
		files, err := parseCloudConfig(source)
		if strings.Contains(source, "{}") {
			if err == nil {
				t.Errorf("%q was accepted", source)
			}
			continue
		}
		if err != nil || len(files) != 2 || files[0] != (writeFile{"/a", "x"}) || files[1] != (writeFile{"/b", "z"}) {
			t.Errorf("%q: %v, %v", source, files, err)
		}
	}
	for _, source := range []string{
		"write_files: []\n",
		"#cloud-config\n",
		"#cloud-config\nwrite_files:\n",
		"#cloud-config\nwrite_files:\n- path: /a\n",
		"#cloud-config\nwrite_files:\n- path: /a\n  content: 12\n",
		"#cloud-config\nwrite_files:\n- path: /a\n  content: x\n  permissions: '0600'\n",
		"#cloud-config\nwrite_files:\n- path: /a\n  content: x\n- path: /a\n  content: x\n",
		"#cloud-config\nwrite_files:\n- path: /a\n  content: x\nruncmd:\n- reboot\n",
	} {
		if files, err := parseCloudConfig(source); err == nil {
			t.Errorf("%q was read as %v", source, files)
		}
	}
}

// Reads the output of other YAML writers: GUEST_CLOUD_CONFIGS names a JSON file of [{"text": …, "files": [[path,
// content], …]}, …].
func TestCloudConfigsOfAnotherWriter(t *testing.T) {
	path := os.Getenv("GUEST_CLOUD_CONFIGS")
	if path == "" {
		t.Skip("GUEST_CLOUD_CONFIGS is not set")
	}
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Text  string
		Files [][2]string
	}
	if err := json.Unmarshal(source, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		files, err := parseCloudConfig(c.Text)
		if err != nil || len(files) != len(c.Files) {
			t.Fatalf("%q: %v", c.Text, err)
		}
		for i, file := range files {
			if file.path != c.Files[i][0] || file.content != c.Files[i][1] {
				t.Fatalf("%q: file %d is %q with %q", c.Text, i, file.path, file.content)
			}
		}
	}
	if len(cases) == 0 {
		t.Fatal("no cases")
	}
}

func TestHostname(t *testing.T) {
	if name, err := parseHostname("instance-id: podvm-a\nlocal-hostname: podvm-a\n"); err != nil || name != "podvm-a" {
		t.Errorf("%q, %v", name, err)
	}
	for _, source := range []string{"", "local-hostname:", "local-hostname: A_b", "instance-id: x", "- x"} {
		if name, err := parseHostname(source); err == nil {
			t.Errorf("%q gave %q", source, name)
		}
	}
}

func TestLabOptions(t *testing.T) {
	options, err := parseLabOptions("console=ttysclp0 quiet caa.lab=slow,panic\n")
	if err != nil || !options["slow"] || !options["panic"] || options["nolisten"] {
		t.Errorf("%v, %v", options, err)
	}
	if _, err := parseLabOptions("caa.lab=unheard-of"); err == nil {
		t.Error("an unknown option was accepted")
	}
}
