/** Kinds with the fields that tests look at. */
import {at, textAt} from '../../src/core/json.ts';
import type {Kind} from '../../src/kubernetes/objects.ts';

export const nodes: Kind<{readonly capacity: unknown; readonly isCordoned: boolean}> = {
	apiVersion: 'v1',
	kind: 'Node',
	plural: 'nodes',
	isNamespaced: false,
	read: raw => ({capacity: at(raw, 'status', 'capacity'), isCordoned: at(raw, 'spec', 'unschedulable') === true}),
};

export const configMaps: Kind<{readonly data: unknown}> = {
	apiVersion: 'v1',
	kind: 'ConfigMap',
	plural: 'configmaps',
	isNamespaced: true,
	read: raw => ({data: at(raw, 'data')}),
};

export const peerPods: Kind<{readonly instanceId: string | undefined; readonly cleaned: unknown}> = {
	apiVersion: 'confidentialcontainers.org/v1alpha1',
	kind: 'PeerPod',
	plural: 'peerpods',
	isNamespaced: true,
	read: raw => ({instanceId: textAt(raw, 'spec', 'instanceID'), cleaned: at(raw, 'status', 'cleaned')}),
};
