// Parses user-data and meta-data, as strictly as a pod VM does.
package main

import (
	"errors"
	"fmt"
	"strings"
)

type writeFile struct {
	path, content string
}

// parseCloudConfig only accepts `write_files` with `path` and `content`; any other key is an error.
func parseCloudConfig(text string) ([]writeFile, error) {
	if first, _, _ := strings.Cut(text, "\n"); first != "#cloud-config" {
		return nil, errors.New("the first line is not #cloud-config")
	}
	root, err := parseYAML(text)
	if err != nil {
		return nil, err
	}
	if err := root.only("the document", "write_files"); err != nil {
		return nil, err
	}
	list := root.get("write_files")
	if list == nil || list.kind != sequenceNode {
		return nil, errors.New("write_files is not a list")
	}
	var files []writeFile
	seen := map[string]bool{}
	for i, item := range list.items {
		where := fmt.Sprintf("write_files[%d]", i)
		if err := item.only(where, "path", "content"); err != nil {
			return nil, err
		}
		path, err := item.text(where, "path")
		if err != nil {
			return nil, err
		}
		content, err := item.text(where, "content")
		if err != nil {
			return nil, err
		}
		if seen[path] {
			return nil, fmt.Errorf("%s: %q is written twice", where, path)
		}
		seen[path] = true
		files = append(files, writeFile{path, content})
	}
	return files, nil
}

// parseHostname reads `local-hostname` of meta-data and ignores other keys.
func parseHostname(text string) (string, error) {
	root, err := parseYAML(text)
	if err != nil {
		return "", err
	}
	if root.kind != mappingNode {
		return "", errors.New("not a mapping")
	}
	name, err := root.text("the document", "local-hostname")
	if err != nil {
		return "", err
	}
	if name == "" || len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return "", fmt.Errorf("local-hostname %q is no host name", name)
	}
	return name, nil
}

func (n *node) only(where string, known ...string) error {
	if n.kind != mappingNode {
		return fmt.Errorf("%s is not a mapping", where)
	}
	for _, key := range n.keys {
		if !contains(known, key) {
			return fmt.Errorf("%s: key %q is not known", where, key)
		}
	}
	return nil
}

func (n *node) text(where, key string) (string, error) {
	value := n.get(key)
	if value == nil {
		return "", fmt.Errorf("%s: %s is missing", where, key)
	}
	if value.kind != stringNode {
		return "", fmt.Errorf("%s: %s is not a string", where, key)
	}
	return value.value, nil
}

func contains(list []string, wanted string) bool {
	for _, item := range list {
		if item == wanted {
			return true
		}
	}
	return false
}
