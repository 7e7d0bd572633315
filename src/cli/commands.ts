/**
 * The table of commands: the parser of the command line and its help are made from it. What a command does is its own
 * file's, named after it; main.ts knows which. Flags of a command are those of its settings, and its own, which no
 * environment variable stands for.
 */
import {controllerSettings} from './controller-settings.ts';
import {imageSettings, listFlags, pruneFlags, pushFlags, pushSettings, removeFlags} from './image-settings.ts';
import {webhookSettings} from './webhook-settings.ts';
import {inertSettings, settings, type InertSetting, type SettingsTable} from '../config/settings.ts';

export interface CommandFlag {
	/** Without its dash. */
	readonly name: string;
	readonly isSwitch?: true;
	/** What the value is, for the help: `-path DIRECTORY`. Of a switch, none. */
	readonly value?: string;
	readonly description: string;
}

export interface CommandDescription {
	/** Completes the line of the command in the list of commands. */
	readonly summary: string;
	/** As the usage shows it: `FILE | REFERENCE`. */
	readonly usage?: string;
	/** How many operands it takes, at least and at most; none if absent. */
	readonly operands?: readonly [least: number, most: number];
	readonly settings?: SettingsTable;
	/** Names that change nothing and are taken all the same. */
	readonly inertSettings?: readonly InertSetting[];
	readonly flags?: readonly CommandFlag[];
}

export const commands = {
	libvirt: {summary: "serve kata's remote hypervisor API with pod VMs on libvirt", settings, inertSettings},
	check: {
		summary:
			'tell whether this node can run peer pods: the KVM host and the way to it, storage, network, this node',
		settings,
		inertSettings,
		flags: [
			{
				name: 'json',
				isSwitch: true,
				description:
					'One JSON document instead of a screen. Its fields and the names of the checks are stable.',
			},
		],
	},
	webhook: {
		summary: 'serve the admission webhook that turns what pods ask for into the size of their VMs',
		settings: webhookSettings,
	},
	controller: {
		summary: 'delete the VMs of pods whose node is lost: one deployment a cluster',
		settings: controllerSettings,
	},
	'image push': {
		summary: 'make a volume of a pod VM image out of a file or a registry',
		usage: 'FILE | oci::REPOSITORY[:TAG|@DIGEST][::PATH]',
		operands: [0, 1],
		settings: pushSettings,
		flags: pushFlags,
	},
	'image list': {summary: "the pool's images, and which are in use", settings: imageSettings, flags: listFlags},
	'image use': {
		summary: 'have new pod VMs start from another version that is there',
		usage: 'VOLUME',
		operands: [1, 1],
		settings: imageSettings,
	},
	'image rm': {
		summary: 'remove an image that no VM stands on',
		usage: 'VOLUME',
		operands: [1, 1],
		settings: imageSettings,
		flags: removeFlags,
	},
	'image prune': {
		summary: 'remove old versions that no VM stands on, and pushes that were cut off',
		settings: imageSettings,
		flags: pruneFlags,
	},
} as const satisfies Readonly<Record<string, CommandDescription>>;

export type CommandName = keyof typeof commands;
