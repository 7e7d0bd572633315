/**
 * The table of commands. The command line parser and the help text use it. Each command is implemented in the file with
 * its name; main.ts connects the two. A command has the flags of its settings, and flags without an environment
 * variable.
 */
import {controllerSettings} from './controller-settings.ts';
import {
	buildKeys,
	imageSettings,
	listFlags,
	packFlags,
	pruneFlags,
	pushFlags,
	pushSettings,
	removeFlags,
} from './image-settings.ts';
import {consoleFlags, podsFlags, removeFlags as removePodFlags, statusSettings} from './pods-settings.ts';
import {relaySettings} from './relay-settings.ts';
import {webhookSettings} from './webhook-settings.ts';
import {inertSettings, settings, type InertSetting, type SettingsTable} from '../config/settings.ts';

export interface CommandFlag {
	/** Without its dash. */
	readonly name: string;
	readonly isSwitch?: true;
	/** Name of the value in the help text: `-path DIRECTORY`. Absent for a switch. */
	readonly value?: string;
	readonly description: string;
}

export interface CommandDescription {
	/** One line for the list of commands. */
	readonly summary: string;
	/** Operands in the usage line: `FILE | REFERENCE`. */
	readonly usage?: string;
	/** Minimum and maximum number of operands; none if absent. */
	readonly operands?: readonly [least: number, most: number];
	readonly settings?: SettingsTable;
	/** Settings that are accepted without effect. */
	readonly inertSettings?: readonly InertSetting[];
	readonly flags?: readonly CommandFlag[];
}

export const commands = {
	libvirt: {summary: 'run the daemon: serve the kata remote hypervisor API with libvirt', settings, inertSettings},
	check: {
		summary: 'check whether this node can run peer pods: KVM host, connection, storage, network, this node',
		settings,
		inertSettings,
		flags: [
			{
				name: 'json',
				isSwitch: true,
				description: 'Prints one JSON document. Its fields and the names of the checks are stable.',
			},
		],
	},
	relay: {
		summary: 'serve the sockets of the kata shims, so that pods survive a restart of the daemon',
		settings: relaySettings,
	},
	pods: {
		summary: 'list the pod VMs of this node, with their states and last errors',
		settings: statusSettings,
		flags: podsFlags,
	},
	'pods inspect': {
		summary: 'show everything about one pod VM: record, domain, volumes, network, log',
		usage: 'POD',
		operands: [1, 1],
		settings: statusSettings,
	},
	'pods console': {
		summary: 'show the console output of a pod VM',
		usage: 'POD',
		operands: [1, 1],
		settings: statusSettings,
		flags: consoleFlags,
	},
	'pods rm': {
		summary: 'remove a sandbox with its VM, as StopVM does',
		usage: 'POD',
		operands: [1, 1],
		settings: statusSettings,
		flags: removePodFlags,
	},
	'log-level': {
		summary: 'show or change the log level of the daemon on this node',
		usage: '[LEVEL]',
		operands: [0, 1],
		settings: statusSettings,
	},
	webhook: {
		summary: 'serve the admission webhook that derives the VM size from the requests of a pod',
		settings: webhookSettings,
	},
	controller: {
		summary: 'delete the VMs of pods whose node is lost; one deployment per cluster',
		settings: controllerSettings,
	},
	'image push': {
		summary: 'upload a pod VM image from a file or a registry to a new volume',
		usage: 'FILE | ARCHIVE | oci::REPOSITORY[:TAG|@DIGEST][::PATH]',
		operands: [0, 1],
		settings: pushSettings,
		inertSettings: buildKeys,
		flags: pushFlags,
	},
	'image list': {summary: 'list the images in the pool and their users', settings: imageSettings, flags: listFlags},
	'image use': {
		summary: 'select another existing version for new pod VMs',
		usage: 'VOLUME',
		operands: [1, 1],
		settings: imageSettings,
	},
	'image rm': {
		summary: 'remove an image that no VM uses',
		usage: 'VOLUME',
		operands: [1, 1],
		settings: imageSettings,
		flags: removeFlags,
	},
	'image prune': {
		summary: 'remove old versions that no VM uses, and interrupted pushes',
		settings: imageSettings,
		flags: pruneFlags,
	},
	'image pack': {
		summary: 'wrap a qcow2 image in a container image, as an OCI archive',
		usage: 'FILE',
		operands: [1, 1],
		flags: packFlags,
	},
} as const satisfies Readonly<Record<string, CommandDescription>>;

export type CommandName = keyof typeof commands;
